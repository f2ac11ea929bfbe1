"""The fast forms of operators on a CPU, and the memory they work in."""
