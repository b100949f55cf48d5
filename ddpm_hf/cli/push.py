"""Push a saved model to the Hub, or the app as a Space that shows a model.

The token is $HF_TOKEN, or that of `hf auth login`. A push of files that the repo has already makes no commit. After a network failure the
same command finishes the push.
"""

import argparse
import sys
from pathlib import Path

from . import HelpFormatter, command

USAGE = """%(prog)s MODEL --repo_id NAME [--private] [--revision BRANCH] [--create_pr]
       %(prog)s --space NAME --model REPO [--private]"""
SPACE_APP = Path(__file__).resolve().parents[2] / "spaces_app"


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options; a mixture of those for a model and for a Space ends the program with one line."""
    parser = argparse.ArgumentParser(description=__doc__, usage=USAGE, formatter_class=HelpFormatter)
    parser.add_argument("folder", metavar="MODEL", nargs="?", help="The folder of the saved model to push.")
    parser.add_argument("--repo_id", help="The repo to push to: owner/name, or name for your own account.")
    parser.add_argument(
        "--revision",
        help="The branch to push to. By default main, and with it stock, the same weights for diffusers' own classes.",
    )
    parser.add_argument(
        "--create_pr",
        action="store_true",
        help="Open a pull request to main instead of a commit. The branch stock stays as it is.",
    )
    parser.add_argument(
        "--space", metavar="NAME", help="The Gradio Space to create or update, from the folder spaces_app/ of a clone."
    )
    parser.add_argument("--model", metavar="REPO", help="The Hub id of the model that the Space shows.")
    parser.add_argument(
        "--private",
        action="store_true",
        help="Create the repo or Space private. It is an error if it exists and is public.",
    )
    args = parser.parse_args(argv)
    if args.space and (args.model is None or args.folder or args.repo_id or args.revision or args.create_pr):
        parser.error("--space goes with --model REPO and --private only")
    if not args.space and (args.folder is None or args.repo_id is None or args.model):
        parser.error("give MODEL and --repo_id NAME to push a model, or --space NAME and --model REPO to push the app")
    return args


@command
def main(argv: list[str]) -> None:
    """`ddpm-push`: prints the address of the commit or of the pull request."""
    args = parse_args(argv)
    from .. import hub

    if args.space:
        commit = hub.push_space(SPACE_APP, args.space, args.model, private=args.private)
    else:
        options = {"private": args.private, "revision": args.revision, "create_pr": args.create_pr}
        commit = hub.push(args.folder, args.repo_id, **options)
    print(commit.pr_url or commit.commit_url)
    if args.create_pr:
        print("After its merge push again without --create_pr, which brings the branch stock along.")


if __name__ == "__main__":
    sys.exit(main())
