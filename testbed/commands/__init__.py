"""The commands of ``testbed``, one module for each group; loaded when used."""
