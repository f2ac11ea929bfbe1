"""What other projects publish: one module for each publisher, with its files, numbers and licences."""
