"""How plots and pages look: in the style of the service's own page."""
