"""What people ask of results: inventory, indicators, footprints, shares, the ledger of a meter. Nothing is stored."""
