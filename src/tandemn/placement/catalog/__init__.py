"""What can be rented: GPUs, instance types, regions and prices, each with its source and date."""
