"""Published protocols as data: one YAML file a paper, one row a set; ``rows`` reads them."""
