"""From a checkpoint to quantized GGUF files, each with a card: conversion, quantization, self-test vectors."""
