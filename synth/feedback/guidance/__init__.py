"""The feedback: criteria, their options, and the hooks that apply them while sampling."""
