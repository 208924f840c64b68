"""From a YAML file, overrides and a notebook's parameters to one resolved configuration."""
