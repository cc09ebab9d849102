"""A project of one's own around a published model: the family file, its prompt builder, the recipe,
a test and what packages them."""
