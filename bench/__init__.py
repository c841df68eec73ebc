"""Measure hsm-kms: rates, times, CPU, memory, and how each grows.

`python -m bench` runs the suites of `suites` as a `plan` says, and writes what came of
it (`results`) as JSON, Markdown (`report`) and SVG (`plots`). `python -m bench.publish`
puts one such run into docs/.
"""
