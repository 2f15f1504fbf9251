"""The policy file: reads its YAML text, reports all errors at once, and builds a `Policy`. The commands call it at the
start, `proxy.processes` at each reload. Four steps: `yamltext` parses the text and knows the line and column of each
value, `model` checks keys and types, `build` makes the `Policy` and reads the files that it names, and `findings` names
what is right but needs attention, such as a pin that expires soon.

Offers:

- `findings`: Ending, Finding, calendar, endings, findings, log_findings; what needs attention about a right policy, and
  what ends
- `load`: load_policy; from a path to a `Policy`, or to all errors
- `nearby`: find_policy; which file it is
- `refusal`: PolicyError, PolicyErrors; the errors
"""
