"""The commands of `overcoat`, one module a group; heavy imports happen inside the functions."""
