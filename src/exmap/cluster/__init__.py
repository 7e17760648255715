"""Clusterers with scikit-learn's contract: spectral with the eigengap, k-means, UMAP + k-means."""

from exmap.cluster.embedding import embed
from exmap.cluster.exemplars import group_means, similarity_to_means
from exmap.cluster.kmeans import SampledKMeans
from exmap.cluster.methods import as_clusterer, clusterer_names, make_clusterer
from exmap.cluster.spectral import SpectralEigengap
from exmap.cluster.spectrum import Spectrum, cluster_qr, eigengap, laplacian_spectrum
from exmap.cluster.umap_kmeans import UmapKMeans

__all__ = [
    "SampledKMeans",
    "SpectralEigengap",
    "Spectrum",
    "UmapKMeans",
    "as_clusterer",
    "cluster_qr",
    "clusterer_names",
    "eigengap",
    "embed",
    "group_means",
    "laplacian_spectrum",
    "make_clusterer",
    "similarity_to_means",
]
