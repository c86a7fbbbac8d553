"""The command line: thin. It parses, calls the library and prints; no framework is loaded before a command needs it."""
