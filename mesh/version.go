package mesh

// Version is that of all the programs, of the chart and of the images.
const Version = "0.1.0"
