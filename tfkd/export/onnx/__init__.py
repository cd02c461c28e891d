"""ONNX export: conversion, graph clean-up, QuantizeLinear and DequantizeLinear pairs, float16."""
