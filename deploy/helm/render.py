"""Renders the chart as `helm template` does: values are checked against the schema, then the templates are run."""

import json
import pathlib
import re
import sys

import helm_python

HERE = pathlib.Path(__file__).resolve().parent
CHART = HERE / "sealpod"
MANIFESTS = HERE.parent / "manifests"
NAMESPACE = "sealpod"
# What each file of deploy/manifests/ is rendered with.
HALVES = {
    "node.yaml": "",
    "broker.yaml": "node: {enabled: false}\nbroker: {enabled: true}\n",
}
HOOK = re.compile(r"^    helm\.sh/hook: ", re.MULTILINE)


def render(values):
    """Each manifest's text, by kind and name in the order of Helm's templates; without NOTES.txt."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(chart.merge_values(values))
        templates = chart.render(values, name="sealpod", namespace=NAMESPACE)
    documents = []
    for path, text in sorted(templates.items()):
        if path.endswith(".yaml"):
            documents += [part.strip() for part in re.split(r"^---$", text, flags=re.MULTILINE)]
    return [document for document in documents if re.search(r"^kind:", document, re.MULTILINE)]


def manifest(values):
    """One file for `kubectl apply`. Hooks are Helm's: applied, they would run at once."""
    head = "# Rendered from the chart by deploy/helm/render.sh --write. Change the chart, not this file.\n"
    documents = [document for document in render(values) if not HOOK.search(document)]
    return head + "".join(f"---\n{document}\n" for document in documents)


def values_of(paths):
    """The values of files; later ones win, as in Helm."""
    merged = {}
    for path in paths:
        merge(merged, helm_python.values_from_yaml(pathlib.Path(path).read_text()))
    return merged


def merge(into, values):
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def main(arguments):
    options = {argument for argument in arguments if argument.startswith("--")}
    values = values_of(argument for argument in arguments if not argument.startswith("--"))
    if unknown := options - {"--json", "--hooks", "--lint", "--values", "--write"}:
        raise SystemExit(f"error: {' '.join(sorted(unknown))} is not known; render.sh says at its top what is")
    if "--write" in options:
        MANIFESTS.mkdir(exist_ok=True)
        for name, text in HALVES.items():
            (MANIFESTS / name).write_text(manifest(helm_python.values_from_yaml(text)))
    elif "--lint" in options:
        print(json.dumps(helm_python.lint(CHART, values, strict=True)))
    elif "--values" in options:
        with helm_python.Chart.load(CHART) as chart:
            print(json.dumps(chart.merge_values(values)))
    elif "--json" in options:
        documents = [document for document in render(values) if "--hooks" in options or not HOOK.search(document)]
        print(json.dumps([helm_python.values_from_yaml(document) for document in documents]))
    else:
        print(manifest(values), end="")


try:
    main(sys.argv[1:])
except helm_python.HelmError as error:
    raise SystemExit(f"error: {error}")
