"""The processes: what starts, watches, reloads and ends them, and what they tell the one who runs them."""
