"""Which models clients are told of: each served reference by every name that it has, with what it can do.

Knows of a reference what its first loaded model said; nothing is loaded for a listing.
"""

from nestling.models.embedder import Embedder
from nestling.server.core.catalog import LATEST, Catalog, Offer, Served
from nestling.spec import ModelSpec


class Listing:
    """The catalog's references and what was learned of them."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._specs = dict[str, ModelSpec]()
        self._images_refused = dict[str, str | None]()

    def learn(self, offer: Offer, embedder: Embedder) -> None:
        """Note what a loaded model of a reference can do."""
        self._specs[offer.name] = embedder.spec
        self._images_refused[offer.name] = embedder.images_refused

    @property
    def takes_images(self) -> bool:
        """True where any model takes images, and so requests may have larger bodies."""
        return None in self._images_refused.values()

    def served(self) -> list[Served]:
        """Each served reference, in each file type that is here, each task by its own name, and each alias."""
        offers = [(offer, kind) for offer in self._catalog.offers for kind in self._catalog.kinds(offer)]
        found = {
            served.name: served
            for offer, kind in offers
            for served in kind.served(self._specs[offer.name], self._images_refused[offer.name])
        }
        return list((found | {name: self._named(name) for name in self._catalog.aliases}).values())

    def named(self, name: str) -> Served:
        """The model that a client calls so; NotServedError or UsageError as for a request with that name."""
        listed = (one for one in self.served() if one.name == name.removesuffix(LATEST))
        return next(listed, None) or self._named(name)

    def _named(self, name: str) -> Served:
        offer, target = self._catalog.found(name)
        spec = self._specs[offer.name]
        tasks, refused = (offer.chosen(target.task),), self._images_refused[offer.name]
        return Served(name, tasks, spec.max_tokens, spec.dimensions, refused)
