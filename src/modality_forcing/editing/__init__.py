"""Tasks that keep a part of what they are given: completion of sparse depth, inpainting."""
