"""Laws: properties that hold on every model, checked on generated ones."""
