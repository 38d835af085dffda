"""autosharding."""
