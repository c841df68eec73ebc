"""Make the book of docs/: the references, from the program, and the pages to browse."""
