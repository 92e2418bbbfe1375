"""How a student is made: teach a language model, distil it into a circuit, export the bundle."""
