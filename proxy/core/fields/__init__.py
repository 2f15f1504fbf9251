"""The marked fields: which values of which bodies, where they stand, and how others are put in their place."""
