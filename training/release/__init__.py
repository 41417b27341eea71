"""From a finished run to the champion: export, checks, registration, promotion."""
