"""Pictures for people: contact sheets, charts and their lettering."""
