"""How a matrix is held and multiplied: a format for each, with one interface (`base.WeightFormat`)."""
