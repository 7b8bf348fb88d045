"""The models that can be evaluated, behind the interface in ``base``; ``load`` opens any folder."""
