"""Deep generative models of public images, and how each family of the paper's study is trained."""
