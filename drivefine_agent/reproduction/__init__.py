"""The paper's tables and figures as jobs of the project's own commands, and what came out of them."""
