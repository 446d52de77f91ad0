"""Everything that shows results: tables, pictures, answers, dashboards. It reads cells; no model is needed."""
