"""What stands in a world: animals, things, props, skies, imported meshes."""
