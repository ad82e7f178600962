"""A model as users see it: load, Model, what the machine is, what it reaches."""
