"""Samples and results in files: imports, exports, and the folder that gateways put files into."""
