"""What a network costs and how well it does."""
