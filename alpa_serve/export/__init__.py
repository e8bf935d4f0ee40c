"""A placement in the words of other systems: MaverIQ's timed commands, a run of Vidur."""
