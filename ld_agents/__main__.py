"""`python -m ld_agents` is `ld-agents`."""

from ld_agents.cli import main

if __name__ == "__main__":
    main()
