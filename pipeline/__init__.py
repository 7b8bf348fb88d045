"""The library that both training stages share: settings, model, objectives, data, training, tracking, evaluation."""
