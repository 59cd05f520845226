"""Files of the manifest import each other in one direction, also for types alone."""

from __future__ import annotations

import grimp


def test_no_two_files_import_each_other() -> None:
    graph = grimp.build_graph("megascale", exclude_type_checking_imports=False)
    files = {name for name in graph.modules if name.startswith("megascale.job.")}
    circles = [
        (importer, imported)
        for importer in files
        for imported in graph.find_modules_directly_imported_by(importer) & files
        if graph.chain_exists(importer=imported, imported=importer)
    ]
    assert len(files) > 15
    assert circles == []
