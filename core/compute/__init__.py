"""Readings into results: the engine, which plant model holds when, and what drives them through the ledger."""
