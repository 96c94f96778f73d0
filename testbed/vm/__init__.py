"""The virtual machine that runs a command where the host's kernel cannot do ESP."""
