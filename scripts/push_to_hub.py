"""Push a saved model to the Hub, or the app as a Space that shows a model.

    python scripts/push_to_hub.py MODEL --repo_id NAME [--private] [--revision BRANCH] [--create_pr]
    python scripts/push_to_hub.py --space NAME --model REPO [--private]

MODEL is the folder of a saved model. The token is the one of `hf auth login` or $HF_TOKEN. A push changes nothing where nothing is
new. Of one that the network stopped the same command does the rest.
"""

import argparse
import sys
from pathlib import Path

from ddpm_hf import hub

SPACE_APP = Path(__file__).resolve().parents[1] / "spaces_app"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="MODEL", nargs="?", help="folder of a saved model")
    parser.add_argument("--repo_id", help="where to push it: owner/name, or name for your own account")
    parser.add_argument("--revision", help="branch to push to (default: main, and with it the branch stock)")
    parser.add_argument(
        "--create_pr", action="store_true", help="open a pull request to main instead; it leaves stock as it is"
    )
    parser.add_argument("--space", metavar="NAME", help="create or update this Gradio Space from spaces_app/")
    parser.add_argument("--model", metavar="REPO", help="Hub id of the model that the Space shows")
    parser.add_argument("--private", action="store_true", help="create the repo or Space private")
    args = parser.parse_args(argv)
    if args.space and (args.model is None or args.folder or args.repo_id or args.revision or args.create_pr):
        parser.error("--space goes with --model REPO and --private only")
    if not args.space and (args.folder is None or args.repo_id is None or args.model):
        parser.error("give MODEL and --repo_id NAME to push a model, or --space NAME and --model REPO to push the app")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        if args.space:
            commit = hub.push_space(SPACE_APP, args.space, args.model, private=args.private)
        else:
            options = {"private": args.private, "revision": args.revision, "create_pr": args.create_pr}
            commit = hub.push(args.folder, args.repo_id, **options)
    except (ValueError, hub.HubError) as error:
        sys.exit(f"error: {error}")
    print(commit.pr_url or commit.commit_url)
    if args.create_pr:
        print("After its merge push again without --create_pr, which brings the branch stock along.")


if __name__ == "__main__":
    main()
