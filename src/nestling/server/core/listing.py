"""Lists the models that clients may name: each served reference under all its names, with its capabilities.

These are known from a reference's first loaded model; listing loads nothing.
"""

from nestling.models.embedder import Embedder
from nestling.server.core.catalog import LATEST, Catalog, Offer, Served
from nestling.spec import ModelSpec


class Listing:
    """The catalog's references and their capabilities."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._specs = dict[str, ModelSpec]()
        self._images_refused = dict[str, str | None]()

    def learn(self, offer: Offer, embedder: Embedder) -> None:
        """Record the capabilities of a reference's loaded model."""
        self._specs[offer.name] = embedder.spec
        self._images_refused[offer.name] = embedder.images_refused

    @property
    def takes_images(self) -> bool:
        """True if any model takes images, so that requests may have larger bodies."""
        return None in self._images_refused.values()

    def served(self) -> list[Served]:
        """Each served reference, in each local file type, each task under its own name, and each alias."""
        offers = [(offer, kind) for offer in self._catalog.offers for kind in self._catalog.kinds(offer)]
        found = {
            served.name: served
            for offer, kind in offers
            for served in kind.served(self._specs[offer.name], self._images_refused[offer.name])
        }
        return list((found | {name: self._named(name) for name in self._catalog.aliases}).values())

    def named(self, name: str) -> Served:
        """The model that a client's name means; NotServedError or UsageError as for a request with that name."""
        listed = (one for one in self.served() if one.name == name.removesuffix(LATEST))
        return next(listed, None) or self._named(name)

    def _named(self, name: str) -> Served:
        offer, target = self._catalog.found(name)
        spec = self._specs[offer.name]
        tasks, refused = (offer.chosen(target.task),), self._images_refused[offer.name]
        return Served(name, tasks, spec.max_tokens, spec.dimensions, refused)
