"""What models cost: the profile classes, the shipped figure tables and one reader per source of profiles."""
