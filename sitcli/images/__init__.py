"""Image files: listing, reading, cropping, drawing."""
