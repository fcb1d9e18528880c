"""The command line `jsctl`. A subcommand imports its modules when it runs, so that `--help` is quick."""


def entry() -> int:
    """Run `jsctl`; return 130 when Ctrl-C comes while its modules are imported."""
    try:
        from .main import main
    except KeyboardInterrupt:
        return 130
    return main()
