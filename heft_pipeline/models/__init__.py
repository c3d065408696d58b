"""The frozen base model and the adapters on it: LoRA through PEFT, ReFT through pyreft."""
