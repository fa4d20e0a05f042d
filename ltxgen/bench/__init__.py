"""How fast the parts of a recipe are on this machine, beside what the machine allows and what others take."""
