"""The papers' experiments as sweeps: their tables as data, and the sweep files made of them."""
