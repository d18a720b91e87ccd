"""How a figure is opened, closed, verified, computed again and explained in its change."""
