"""Write the generated parts of the pages: `python -m book`."""

from book.pages import regenerated

for path, text in regenerated():
    if path.read_text() != text:
        path.write_text(text)
        print(f"written: {path.name}")
